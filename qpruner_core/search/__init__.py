"""*search*: which precision where. Knows plans, bytes and Optuna; knows no model and loads no
torch.

`space` says what may be chosen, `knapsack` predicts the best plan under every budget, `presets`
holds the baselines, `study` asks and records trials, `reading` shows them to the browser side,
`pareto` tells what is non-dominated. One file per strategy: each target gives an Optuna sampler,
which is the whole protocol.
"""
