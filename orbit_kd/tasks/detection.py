"""Boxes: placeholder until the detector is merged."""
