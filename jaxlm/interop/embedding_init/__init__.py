"""First embeddings of a vocabulary's new tokens, one method a file, on the contract of `embedding_init.base`."""

METHODS = {
    "normal": "normal:Normal",
    "random": "random:Random",
    "covariance": "covariance:Covariance",
    "mean": "mean:Mean",
    "mean_of_pieces": "mean_of_pieces:MeanOfPieces",
    "k_tokeniser": "k_tokeniser:KTokeniser",
    "focus": "focus:Focus",
    "wechsel": "wechsel:Wechsel",
    "ofa": "ofa:Ofa",
}
