"""Logits processors, one file each, on the contract of `jaxlm.decode.processor.Processor`."""

METHODS = {
    "repetition": "repetition:Repetition",
    "suppress": "suppress:Suppress",
    "temperature": "temperature:Temperature",
    "top_k": "top_k:TopK",
    "top_p": "top_p:TopP",
    "min_p": "min_p:MinP",
    "automaton": "automaton:Automaton",
    "constraint": "constraint:Constrained",
}
