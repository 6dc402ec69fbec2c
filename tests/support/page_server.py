"""The web page before routes that answer as the real ones do, without a model: names and answers as tests want them."""

import asyncio
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from deltatune.serving.server.guard.refusals import Refusal
from deltatune.serving.server.guard.request_log import call_of
from support.guarded_server import GuardedServer

HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
TASKS = {"german": "lm", "writer": "generate", "mood": "classify", "price": "classify", "names": "tag", "pos": "tag"}
TASKS |= {"reader": "span", "slow": "lm", "broken": "lm", "cut": "lm", HOSTILE: "lm", HOSTILE[:-1]: "classify"}


class PageServer(GuardedServer):
    """The page and its stand-in routes; `asked` has the bodies that came."""

    def __init__(self, extra=0, **more):
        self.asked, self.extra = [], extra
        super().__init__(**more)

    def names(self):
        return [*TASKS, *(f"task-{place:05d}" for place in range(self.extra))]

    def _routes(self):
        app = self.app

        @app.get("/v1/models")
        async def models(request: Request):
            data = [{"id": "base", "root": "tiny/llama", "parent": None}]
            data += [
                {"id": name, "root": name, "parent": "base", "task": TASKS.get(name, "lm"), "method": "LoRA(r=8)"}
                for name in self.names()
                if call_of(request.scope).may_use(name)
            ]
            return JSONResponse({"object": "list", "data": data})

        @app.post("/v1/completions")
        async def completions(request: Request):
            body = await self._asked(request)
            names = "+".join(f"{name}:{weight:g}" for name, weight in body.get("adapters", {}).items()) or "base"
            if "broken" in names:
                raise Refusal(503, f"The server is overloaded: {HOSTILE}", retry_after=7)
            text = f"{names} says {body.get('prompt') or body.get('input')}"
            return StreamingResponse(self._parts(text, "text", names), media_type="text/event-stream")

        @app.post("/v1/chat/completions")
        async def chat(request: Request):
            text = "chat: " + (await self._asked(request))["messages"][0]["content"]
            return StreamingResponse(self._parts(text, "chat", ""), media_type="text/event-stream")

        @app.post("/v1/classify")
        async def classify(request: Request):
            body = await self._asked(request)
            if "price" in body["adapters"]:
                return JSONResponse({"data": [{"index": 0, "score": 12.5}]})
            scores = {"positive": 0.9, "negative": 0.07, HOSTILE: 0.03}
            return JSONResponse({"data": [{"index": 0, "label": "positive", "score": 0.9, "scores": scores}]})

        @app.post("/v1/tag")
        async def tag(request: Request):
            body = await self._asked(request)
            words = body["input"].split()
            if "pos" in body["adapters"]:
                tags = ["NOUN" if word.istitle() else "VERB" for word in words]
                return JSONResponse({"data": [{"index": 0, "tokens": words, "tags": tags, "spans": []}]})
            tags = ["B-PER" if word.istitle() else "O" for word in words]
            spans = [
                {"type": HOSTILE if place == 0 else "PER", "first_word": place, "last_word": place}
                for place, tag in enumerate(tags)
                if tag != "O"
            ]
            return JSONResponse({"data": [{"index": 0, "tokens": words, "tags": tags, "spans": spans}]})

        @app.post("/v1/answer")
        async def answer(request: Request):
            body = await self._asked(request)
            start = body["context"].find(body["question"].strip("?"))
            found = "" if start < 0 else body["question"].strip("?")
            place = {"answer": found, "start": max(0, start), "end": max(0, start) + len(found), "score": 0.5}
            return JSONResponse({"data": [{"index": 0, **place}]})

    async def _asked(self, request):
        self.asked.append(body := await request.json())
        return body

    async def _parts(self, text, kind, names):
        words = [part + " " for part in text.split(" ")]
        try:
            for word in words:
                choice = {"text": word} if kind == "text" else {"delta": {"content": word}}
                yield f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n"
                await asyncio.sleep(5 if "slow" in names else 0.005)
                if "cut" in names:
                    return
        except asyncio.CancelledError:
            self.cancelled.append(names)
            raise
        usage = {"choices": [], "usage": {"completion_tokens": len(words)}}
        yield f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n"
