"""The trainable U-Net, its loss and its moving average. Needs torch."""
