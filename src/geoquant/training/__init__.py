"""Training loops."""

from geoquant.training.classifier import fit_classifier_

__all__ = ["fit_classifier_"]
