"""Training objectives, one file each. The contract is `jaxlm.objective.next_token.NextToken`'s two methods."""

METHODS = {
    "next_token": "next_token:NextToken",
    "tokenizer_transfer": "tokenizer_transfer:TokenizerTransfer",
    "span_corruption": "span_corruption:SpanCorruption",
}
