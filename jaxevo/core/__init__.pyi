from . import noise as noise
from . import statistics as statistics
from .networks import (
    check_requirements as check_requirements,
)
from .problem import (
    Control as Control,
)
from .problem import (
    Episode as Episode,
)
from .problem import (
    Evaluation as Evaluation,
)
from .problem import (
    Problem as Problem,
)
from .problem import (
    Sequence as Sequence,
)
from .problem import (
    Supervised as Supervised,
)
from .problem import (
    abstract_batch as abstract_batch,
)
from .problem import (
    abstract_key as abstract_key,
)
from .problem import (
    check_key as check_key,
)
from .problem import (
    has_carry as has_carry,
)
from .problem import (
    num_samples as num_samples,
)
from .protocols import (
    Advises as Advises,
)
from .protocols import (
    Apply as Apply,
)
from .protocols import (
    Batch as Batch,
)
from .protocols import (
    Carry as Carry,
)
from .protocols import (
    ControlTask as ControlTask,
)
from .protocols import (
    Cost as Cost,
)
from .protocols import (
    CountsUntilSolved as CountsUntilSolved,
)
from .protocols import (
    DrawsPopulation as DrawsPopulation,
)
from .protocols import (
    Edits as Edits,
)
from .protocols import (
    Estimator as Estimator,
)
from .protocols import (
    FitsCheckpoints as FitsCheckpoints,
)
from .protocols import (
    FollowsGradient as FollowsGradient,
)
from .protocols import (
    GoesOn as GoesOn,
)
from .protocols import (
    Learner as Learner,
)
from .protocols import (
    Mask as Mask,
)
from .protocols import (
    Metrics as Metrics,
)
from .protocols import (
    Model as Model,
)
from .protocols import (
    Params as Params,
)
from .protocols import (
    Population as Population,
)
from .protocols import (
    ReportsSlots as ReportsSlots,
)
from .protocols import (
    Requires as Requires,
)
from .protocols import (
    Resized as Resized,
)
from .protocols import (
    Resizes as Resizes,
)
from .protocols import (
    SequenceTask as SequenceTask,
)
from .protocols import (
    State as State,
)
from .protocols import (
    SupervisedTask as SupervisedTask,
)
from .protocols import (
    Task as Task,
)
from .pytrees import (
    Data as Data,
)
from .pytrees import (
    Scalar as Scalar,
)
from .pytrees import (
    learner as learner,
)
from .pytrees import (
    pytree as pytree,
)
from .pytrees import (
    require as require,
)
from .pytrees import (
    require_choice as require_choice,
)
from .pytrees import (
    require_integer as require_integer,
)
from .pytrees import (
    static as static,
)
