"""Training on transformers.Trainer: adapters alone are optimised and saved, exactly resumed, and checked to learn."""

from deltatune.training.adapter_fusion import fuse
from deltatune.training.forward import logits
from deltatune.training.inference.decoding import write
from deltatune.training.inference.ensemble import ensemble
from deltatune.training.inference.prediction import encode_for, predict
from deltatune.training.settings import Settings
from deltatune.training.task_model import Tuned
from deltatune.training.train_adapter import Outcome, train
from deltatune.training.trainer import DeltaTrainer

__all__ = [
    "DeltaTrainer",
    "Outcome",
    "Settings",
    "Tuned",
    "encode_for",
    "ensemble",
    "fuse",
    "logits",
    "predict",
    "train",
    "write",
]
