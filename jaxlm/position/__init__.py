"""Position encodings, one file each, on the contract of `jaxlm.core.types.PositionEncoding`."""

METHODS = {
    "none": "none:NoPosition",
    "learned": "learned:Learned",
    "sinusoidal": "sinusoidal:Sinusoidal",
    "rotary": "rotary:Rotary",
    "alibi": "alibi:Alibi",
    "t5_bias": "t5_bias:T5Bias",
    "randomized": "randomized:Randomized",
    "temperature": "temperature:Temperature",
}
