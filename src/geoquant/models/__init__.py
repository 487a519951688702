"""Finding layers, calling models, and changing them reversibly."""

from geoquant.models.batchnorm import apply_folds_, fold_batch_norm, fold_batch_norm_, folded_pairs
from geoquant.models.calling import (
    Forward,
    batch_size,
    check_finite,
    evaluating,
    inference,
    inputs_of,
    logits_of,
    move,
    predict,
    prediction_mask,
    targets_of,
)
from geoquant.models.inventory import Inventory, TensorRecord, other_tensors, stored_state, take_inventory
from geoquant.models.key_values import cache_sites, is_cache_site
from geoquant.models.loading import load_model, load_weights_, model_fingerprint
from geoquant.models.lockstep import Arrival, walk_in_lockstep
from geoquant.models.observation import Observation, observe
from geoquant.models.operations import find_operations, is_traceable
from geoquant.models.patches import has_patches, patches
from geoquant.models.pretrained import (
    TASKS,
    class_names,
    context_length,
    is_pretrained_folder,
    load_pretrained,
    load_tokenizer,
    source_folder,
)
from geoquant.models.replay import Replay
from geoquant.models.selection import FUSED_LAYERS, fused_groups, select
from geoquant.models.sites import Site, find_sites, get_weight, register_layer_type, set_weight_, temporarily

__all__ = [
    "FUSED_LAYERS",
    "TASKS",
    "Arrival",
    "Forward",
    "Inventory",
    "Observation",
    "Replay",
    "Site",
    "TensorRecord",
    "apply_folds_",
    "batch_size",
    "cache_sites",
    "check_finite",
    "class_names",
    "context_length",
    "evaluating",
    "find_operations",
    "find_sites",
    "fold_batch_norm",
    "fold_batch_norm_",
    "folded_pairs",
    "fused_groups",
    "get_weight",
    "has_patches",
    "inference",
    "inputs_of",
    "is_cache_site",
    "is_pretrained_folder",
    "is_traceable",
    "load_model",
    "load_pretrained",
    "load_tokenizer",
    "load_weights_",
    "logits_of",
    "model_fingerprint",
    "move",
    "observe",
    "other_tensors",
    "patches",
    "predict",
    "prediction_mask",
    "register_layer_type",
    "select",
    "set_weight_",
    "source_folder",
    "stored_state",
    "take_inventory",
    "targets_of",
    "temporarily",
    "walk_in_lockstep",
]
