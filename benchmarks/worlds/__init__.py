"""The mini worlds: street scenes the suite renders itself, and a backbone pre-trained on them.

Photographs are RGB uint8 (H, W, 3), labels uint8 (H, W) of trainIds, corners (n, 2) in pixels.
"""
