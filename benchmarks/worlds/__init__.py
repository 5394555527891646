"""The mini worlds: street scenes the suite renders itself, and a backbone pre-trained on them."""
