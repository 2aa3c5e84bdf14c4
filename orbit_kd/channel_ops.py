"""How channel ids flow through TensorFlow operations in a Keras graph (`x + y`, `tf.nn.relu(x)`, slicing)."""

from __future__ import annotations

import orbit_kd.channel_rules  # noqa: F401  (files the rules of Keras layers)
