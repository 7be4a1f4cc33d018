"""What the steps of a training run say: how the numbers went on, where effects came up, beside their controls."""
