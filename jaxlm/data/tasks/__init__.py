"""The slot ``task``: sequence-to-sequence problems whose length can be extrapolated (`base` has the contract).

The list is that of Kazemnejad et al. 2023, "The Impact of Positional Encoding on Length Generalization", retrieval, and
what task hinting mixes with sorting.
"""

METHODS = {
    "copy_rsc": "copy:CopyRsc",
    "copy_rsc2x": "copy:CopyRsc2x",
    "copy_rdc": "copy:CopyRdc",
    "copy_rdc2x": "copy:CopyRdc2x",
    "copy_cmc": "copy:CopyCmc",
    "copy_cmc2x": "copy:CopyCmc2x",
    "reverse_mc": "reverse:ReverseMc",
    "reverse_mc2x": "reverse:ReverseMc2x",
    "reverse_mcrv": "reverse:ReverseMcrv",
    "addition": "addition:Addition",
    "summation": "summation:Summation",
    "polynomial": "polynomial:Polynomial",
    "sort_single": "sort:SortSingle",
    "sort_multi": "sort:SortMulti",
    "parity": "parity:Parity",
    "lego": "lego:Lego",
    "scan": "scan:Scan",
    "pcfg": "pcfg:Pcfg",
    "passkey": "passkey:Passkey",
    "successor": "successor:Successor",
    "mixture": "mixture:Mixture",
}
