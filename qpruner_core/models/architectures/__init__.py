"""One file per family: `layout(config) -> ModelLayout`, from `config.json` alone and without
torch.
"""
