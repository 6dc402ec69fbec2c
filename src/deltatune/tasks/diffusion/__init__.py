"""Text-to-image: pictures and captions as latents and text states, noise, and the loss of predicting it."""
