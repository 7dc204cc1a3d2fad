"""The same steps as transformers' Trainer takes them, with the same model and the same loss."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import EuroBertConfig, EuroBertForMaskedLM, PrinterCallback, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

from stackwise_core.interfaces.rack_spec import RackSpec
from tests.benchmarks.steps.by_engine import Clock, wait_for
from tests.benchmarks.steps.by_hand import Batch, Widths

NOT_PREDICTED = -100


def eurobert(spec: RackSpec, weights: dict[str, Tensor], device: torch.device) -> EuroBertForMaskedLM:
    """Return the rack as a model of transformers, which is the same to the bit in fp32.

    Args:
        weights: of the whole rack by the model's names.
    """
    config = EuroBertConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.d_ff,
        num_hidden_layers=sum(spec.blocks),
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        max_position_embeddings=spec.seq_len,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    model = EuroBertForMaskedLM(config).to(device)
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model


class _MaskedTrainer(Trainer):
    """Trainer of the loss under masks, that visits its rows in order."""

    mask_id = 0

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Tensor:
        logits = model(input_ids=inputs["input_ids"]).logits
        chosen = inputs["labels"] != NOT_PREDICTED
        logits, targets = logits[chosen].float(), inputs["labels"][chosen]
        logits[:, self.mask_id] = -torch.inf
        return (inputs["weights"][chosen] * F.cross_entropy(logits, targets, reduction="none")).sum()

    def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class _Watch(TrainerCallback):
    def __init__(self, warm_up: int, steps: int, device: torch.device, clock: Clock) -> None:
        self._at, self._device, self._clock = (warm_up, warm_up + steps), device, clock
        self.times = list[float]()

    def on_step_end(self, arguments: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step in self._at:
            wait_for(self._device)
            self.times.append(self._clock())


class TrainerSteps:
    """The steps of a model under Trainer."""

    def __init__(
        self,
        model: EuroBertForMaskedLM,
        widths: Widths,
        batches: Sequence[Batch],
        warm_up: int,
        steps: int,
        clock: Clock,
    ) -> None:
        self._model, self._widths, self._warm_up, self._steps, self._clock = model, widths, warm_up, steps, clock
        self._size, self._rows = len(batches[0].inputs), [row for batch in batches for row in _rows(batch)]

    def seconds(self) -> float:
        """Take the steps, and return the seconds of one that counts."""
        watch = _Watch(self._warm_up, self._steps, self._model.device, self._clock)
        self._train(self._warm_up + self._steps, watch)
        return (watch.times[1] - watch.times[0]) / self._steps

    def first_loss(self) -> float:
        """Compute the loss of the first batch, as a step of Trainer does."""
        found = list[float]()

        class Seen(_MaskedTrainer):
            def compute_loss(self, *arguments: Any, **named: Any) -> Tensor:
                loss = super().compute_loss(*arguments, **named)
                found.append(float(loss.detach()))
                return loss

        before = {name: each.detach().clone() for name, each in self._model.state_dict().items()}
        self._train(1, kind=Seen)
        self._model.load_state_dict(before)
        return found[0]

    def _train(self, steps: int, *callbacks: TrainerCallback, kind: type[_MaskedTrainer] = _MaskedTrainer) -> None:
        widths = self._widths
        with tempfile.TemporaryDirectory() as directory:
            arguments = Arguments(
                output_dir=directory,
                per_device_train_batch_size=self._size,
                max_steps=steps,
                learning_rate=widths.lr,
                lr_scheduler_type="constant",
                weight_decay=widths.weight_decay,
                max_grad_norm=widths.max_grad_norm,
                optim="adamw_torch_fused",
                bf16=widths.dtype == torch.bfloat16,
                use_cpu=self._model.device.type == "cpu",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = kind(self._model, arguments, train_dataset=self._rows, callbacks=list(callbacks))
            trainer.mask_id = widths.mask_id
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self._model.__dict__.pop("forward", None)  # which accelerate has wrapped


def _rows(batch: Batch) -> list[dict[str, Tensor]]:
    """Return a batch's sequences as a data set has them."""
    labels = torch.full_like(batch.inputs, NOT_PREDICTED).flatten()
    weights = torch.zeros(batch.inputs.numel())
    labels[batch.masked], weights[batch.masked] = batch.targets, batch.weights
    shape = batch.inputs.shape
    return [
        {"input_ids": ids, "labels": each, "weights": weight}
        for ids, each, weight in zip(batch.inputs, labels.view(shape), weights.view(shape), strict=True)
    ]
