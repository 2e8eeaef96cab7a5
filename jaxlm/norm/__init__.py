"""Normalisations over the last axis, computed in float32."""

METHODS = {"rms": "rms:RmsNorm", "layer": "layer:LayerNorm"}
