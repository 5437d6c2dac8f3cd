from protocols.errors import Aborted as Aborted
from protocols.errors import Fault as Fault
from protocols.errors import Infeasible as Infeasible
from protocols.errors import LocalError as LocalError
from protocols.graph import parameters as parameters
from protocols.journal import MemoryJournal as MemoryJournal
from protocols.journal import SqliteJournal as SqliteJournal
from protocols.machine import Aggregate as Aggregate
from protocols.machine import Answered as Answered
from protocols.machine import Input as Input
from protocols.machine import Received as Received
from protocols.machine import StageClosed as StageClosed
from protocols.machine import Started as Started
from protocols.session import Policy as Policy
from protocols.session import Session as Session
from protocols.session import hash_model as hash_model
from protocols.simulator import Corrupt as Corrupt
from protocols.simulator import Delay as Delay
from protocols.simulator import Drop as Drop
from protocols.simulator import Duplicate as Duplicate
from protocols.simulator import Reorder as Reorder
from protocols.simulator import Replay as Replay
from protocols.simulator import simulate as simulate
from protocols.wire import Envelope as Envelope
from secagg.keys import Identity as Identity

__version__: str
