"""The system at work: profiles, the table of stages, experiments, evidence, submission, the command line."""

from kvlib.recipe.distillation import Distilled, distil
from kvlib.recipe.experiment import Experiment, WeakTeacherError, runs_folder
from kvlib.recipe.profiles import PROFILES, Profile, get_profile
from kvlib.recipe.stages import BASELINES, COMPARED, STAGES, SYSTEMS, needed_stages, systems_of

__all__ = [
    "BASELINES",
    "COMPARED",
    "PROFILES",
    "STAGES",
    "SYSTEMS",
    "Distilled",
    "Experiment",
    "Profile",
    "WeakTeacherError",
    "distil",
    "get_profile",
    "needed_stages",
    "runs_folder",
    "systems_of",
]
