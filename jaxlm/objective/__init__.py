"""Training objectives, one file each. The contract is `jaxlm.objective.next_token.NextToken`'s two methods; one whose
loss goes by what earlier steps found has those of `jaxlm.train.step.Follows`, too."""

METHODS = {
    "gated_deletion": "gated_deletion:GatedDeletion",
    "next_token": "next_token:NextToken",
    "sequence_to_sequence": "sequence_to_sequence:SequenceToSequence",
    "lexinvariant": "lexinvariant:Lexinvariant",
    "masked_language_model": "masked_language_model:MaskedLanguageModel",
    "tokenizer_transfer": "tokenizer_transfer:TokenizerTransfer",
    "span_corruption": "span_corruption:SpanCorruption",
}
