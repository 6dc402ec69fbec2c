"""Training on transformers.Trainer: adapters alone are optimised and saved, exactly resumed, and checked to learn."""

from deltatune.training.ensembling import ensemble
from deltatune.training.forward import logits
from deltatune.training.fusing import fuse
from deltatune.training.predict import encode_for, predict
from deltatune.training.settings import Settings
from deltatune.training.train import Outcome, train
from deltatune.training.trainer import DeltaTrainer
from deltatune.training.tuned import Tuned
from deltatune.training.writing import write

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
