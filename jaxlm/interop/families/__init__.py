"""Families of Hugging Face checkpoints by their ``model_type``. One a file, as data (`jaxlm.interop.family`)."""

METHODS = {
    name: f"{name}:FAMILY"
    for name in (
        "bloom",
        "cohere",
        "cohere2",
        "deepseek_v3",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "llama",
        "llama4_text",
        "mistral",
        "mixtral",
        "mpt",
        "olmo2",
        "olmo3",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    )
}
