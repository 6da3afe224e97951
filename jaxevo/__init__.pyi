from . import (
    core as core,
)
from . import (
    estimators as estimators,
)
from . import (
    learners as learners,
)
from . import (
    models as models,
)
from . import (
    plotting as plotting,
)
from . import (
    registry as registry,
)
from . import (
    tasks as tasks,
)
from .core import (
    noise as noise,
)
from .core import (
    statistics as statistics,
)
from .core.descent import (
    CosineDecay as CosineDecay,
)
from .core.descent import (
    Optimizer as Optimizer,
)
from .core.descent import (
    optimizer as optimizer,
)
from .core.problem import (
    Evaluation as Evaluation,
)
from .core.problem import (
    Problem as Problem,
)
from .core.protocols import (
    Cost as Cost,
)
from .core.transforms import (
    activated_gradients as activated_gradients,
)
from .core.transforms import (
    powered_gradients as powered_gradients,
)
from .estimators import (
    ActorCritic as ActorCritic,
)
from .estimators import (
    Backprop as Backprop,
)
from .estimators import (
    Decorrelation as Decorrelation,
)
from .estimators import (
    EvolutionStrategy as EvolutionStrategy,
)
from .estimators import (
    ForwardGradient as ForwardGradient,
)
from .estimators import (
    LearnedFeedback as LearnedFeedback,
)
from .estimators import (
    NodePerturbation as NodePerturbation,
)
from .estimators import (
    ReleasedNodePerturbation as ReleasedNodePerturbation,
)
from .estimators import (
    WeightPerturbation as WeightPerturbation,
)
from .learners import (
    AdaptiveMonteCarlo as AdaptiveMonteCarlo,
)
from .learners import (
    Annealing as Annealing,
)
from .learners import (
    Birth as Birth,
)
from .learners import (
    DeepGA as DeepGA,
)
from .learners import (
    DifferentiableStructure as DifferentiableStructure,
)
from .learners import (
    EvosaxStrategy as EvosaxStrategy,
)
from .learners import (
    GradientLearner as GradientLearner,
)
from .learners import (
    Growth as Growth,
)
from .learners import (
    Langevin as Langevin,
)
from .learners import (
    LineSearch as LineSearch,
)
from .learners import (
    Metropolis as Metropolis,
)
from .learners import (
    Mutation as Mutation,
)
from .learners import (
    PathNet as PathNet,
)
from .learners import (
    Penalty as Penalty,
)
from .learners import (
    PopulationBasedTraining as PopulationBasedTraining,
)
from .learners import (
    SafeMutation as SafeMutation,
)
from .learners import (
    StructuredLearner as StructuredLearner,
)
from .learners import (
    signal_norm as signal_norm,
)
from .models import (
    compact as compact,
)
from .registry import (
    register as register,
)
from .studies import (
    correspondence as correspondence,
)
from .studies.comparison import (
    Comparison as Comparison,
)
from .studies.comparison import (
    compare as compare,
)
from .studies.gradient_alignment import (
    Alignment as Alignment,
)
from .studies.gradient_alignment import (
    alignment as alignment,
)
from .studies.robustness import (
    Offspring as Offspring,
)
from .studies.robustness import (
    offspring as offspring,
)
from .studies.transfer_files import (
    Transfer as Transfer,
)
from .studies.transfer_study import (
    transfer as transfer,
)
from .training import (
    sinks as sinks,
)
from .training.driver import (
    RunResult as RunResult,
)
from .training.driver import (
    run as run,
)
from .training.folder import (
    load_params as load_params,
)
from .training.loop import (
    TrainResult as TrainResult,
)
from .training.loop import (
    sweep as sweep,
)
from .training.loop import (
    train as train,
)
from .training.memory import (
    estimate_memory as estimate_memory,
)
from .views import (
    nodes as nodes,
)
from .views import (
    sensitivity as sensitivity,
)

__version__: str
