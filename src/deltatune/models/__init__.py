"""Models: pretrained checkpoints, their architecture, and the hardware they run on."""
