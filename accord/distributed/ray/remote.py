"""One object of a class of ours on another node: its methods are called there, without waiting here."""

from __future__ import annotations

from typing import Any

from accord.distributed.ray.cluster import is_reachable
from accord.errors import UserError


class Lost(Exception):
    """The process of a remote object has ended; with ``node``, since its node was lost."""

    def __init__(self, node: bool) -> None:
        super().__init__("its node was lost" if node else "its process there has ended")
        self.node = node


class Remote:
    """``cls(*arguments)`` in a process on a node with so many free CPUs and GPUs; pending until there is one."""

    def __init__(self, cls: type, arguments: tuple[Any, ...], cpus: float, gpus: float = 0) -> None:
        import ray

        made: Any = ray.remote(cls).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._actor: Any = made.remote(*arguments)
        self._node = self._actor.__ray_call__.remote(_node_of)
        self.node = ""
        """The node's id, once it is there."""

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method; what is returned goes to ``answer``.  Calls are run in their order."""
        return getattr(self._actor, method).remote(*arguments)

    def answer(self, asked: Any, wait: bool = False) -> tuple[Any] | None:
        """(its result,), or None where it has not come.  Raises Lost, and UserError where the method raised it."""
        import ray

        if not wait and not ray.wait([asked], timeout=0)[0]:
            return None
        try:
            if not self.node:
                self.node = ray.get(self._node)
            return (ray.get(asked),)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except ray.exceptions.RayError as error:
            raise Lost(bool(self.node) and not is_reachable(self.node)) from error

    def call(self, method: str, *arguments: Any) -> Any:
        """A method's result, waited for."""
        (result,) = self.answer(self.ask(method, *arguments), wait=True) or (None,)
        return result

    def end(self) -> None:
        """Ends its process."""
        import ray

        ray.kill(self._actor)


def _node_of(actor: Any) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
