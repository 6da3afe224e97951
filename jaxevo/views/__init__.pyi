from . import nodes as nodes
from . import sensitivity as sensitivity
