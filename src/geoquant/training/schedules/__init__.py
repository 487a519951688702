"""Which precision, when? Schedules behind one protocol; see `geoquant.training.schedules.protocol`."""

from geoquant.training.schedules.protocol import SCHEDULES, LayerFacts, Moment, Proposal, Schedule, make_schedule
from geoquant.training.schedules.static import Static

__all__ = ["SCHEDULES", "LayerFacts", "Moment", "Proposal", "Schedule", "Static", "make_schedule"]
