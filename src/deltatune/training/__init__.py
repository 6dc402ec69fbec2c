"""Training of adapters, prediction with them, and their ensembles."""

from deltatune.training.adapter_fusion import fuse
from deltatune.training.forward import logits
from deltatune.training.inference.decoding import generate_texts
from deltatune.training.inference.pictures import draw_pictures, picture_grid
from deltatune.training.inference.prediction import encode_for, ensemble, predict
from deltatune.training.joint_training.pass_speed import is_faster
from deltatune.training.joint_training.train_together import train_together
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import AdapterTraining, Outcome, train

__all__ = [
    "AdapterTraining",
    "Outcome",
    "Settings",
    "draw_pictures",
    "encode_for",
    "ensemble",
    "fuse",
    "generate_texts",
    "is_faster",
    "logits",
    "picture_grid",
    "predict",
    "train",
    "train_together",
]
