"""The engine for asynchronous callers: each awaits its own text while one loop steps all of them together."""

from __future__ import annotations

import asyncio

from llmlab.harness.runtime.engine import Engine, Job
from llmlab.reference.errors import InputError


class AsyncEngine:
    """Requests from coroutines, batched as they come: `tokens = await AsyncEngine(engine).generate(job)`.

    The engine steps while anyone waits; between steps other coroutines run, and what they submit joins the next step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._waiting: dict[int, asyncio.Future[list[int]]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def generate(self, job: Job) -> list[int]:
        """The tokens of one request, when it has ended.

        Raises:
            InputError: an empty prompt, no token wanted, or a request that can never be served.
        """
        request = self.engine.submit(job)
        if request is None:
            raise InputError("job", "prompt", f"{len(job.prompt)} tokens", "can never be served: the cache is too small")
        done = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._serve())
        return await done

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # let others submit before the next step is put together
                for request in self.engine.step() or ():
                    self._waiting.pop(request.id).set_result(self.engine.progress[request.id].generated)
        except Exception as error:
            for waiting in self._waiting.values():
                waiting.set_exception(error)
            self._waiting.clear()
