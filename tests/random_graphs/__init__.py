"""Random valid ONNX graphs made of every source, carrier and absorber, and what must hold when they are folded."""

from tests.random_graphs.compare import Wrong
from tests.random_graphs.examine import Outcome, check, random_options
from tests.random_graphs.generate import GeneratedModel, random_model

__all__ = ["GeneratedModel", "Outcome", "Wrong", "check", "random_model", "random_options"]
