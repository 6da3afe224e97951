from . import correspondence as correspondence
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .transfer_files import Transfer as Transfer
from .transfer_files import load_transfer as load_transfer
from .transfer_study import transfer as transfer
