"""Loading pretrained models, what they can be asked, and the hardware they run on."""
