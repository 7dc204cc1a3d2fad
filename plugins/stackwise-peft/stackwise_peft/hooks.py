"""Implementations that this distribution registers; it imports nothing but the hook specs."""

from stackwise_core.hookspecs import Implementation, hookimpl


@hookimpl
def adapter() -> list[Implementation]:
    return [
        _through_peft("lora", "Low-rank updates B A alpha / rank", "lora:Lora", "LoraOptions"),
        _through_peft("dora", "LoRA of the weights' directions, and a magnitude a row", "lora:Dora", "LoraOptions"),
        _through_peft("rslora", "LoRA over the rank's square root, for high ranks", "lora:RsLora", "LoraOptions"),
        _through_peft("pissa", "LoRA that begins as the largest singular parts", "lora:Pissa", "PissaOptions"),
        _through_peft("olora", "LoRA that begins as part of a QR decomposition", "lora:Olora", "LoraOptions"),
        _through_peft("ia3", "(IA)³, a learned scale a feature: the fewest weights", "ia3:Ia3", "Ia3Options"),
    ]


def _through_peft(name: str, summary: str, factory: str, options: str) -> Implementation:
    factory, options = f"stackwise_peft.{factory}", f"stackwise_peft.options:{options}"
    return Implementation(name, summary, factory, options, packages=("peft",))
