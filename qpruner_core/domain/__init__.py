"""What flows down the line: frozen values that hold no tensors and check themselves on
creation.
"""
