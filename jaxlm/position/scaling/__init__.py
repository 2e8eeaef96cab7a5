"""Rotary scalings: other frequencies for contexts longer than those of training. One rule a file."""

METHODS = {
    "linear": "linear:Linear",
    "dynamic": "dynamic:Dynamic",
    "yarn": "yarn:Yarn",
    "longrope": "longrope:LongRope",
    "llama3": "llama3:Llama3",
    "proportional": "proportional:Proportional",
    "ntk": "ntk:Ntk",
    "power": "power:Power",
    "truncated": "truncated:Truncated",
    "clex": "clex:Clex",
}
