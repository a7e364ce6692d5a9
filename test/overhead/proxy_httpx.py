"""A proxy in Python that takes turns: FastAPI, uvicorn and httpx.

Connections to engines are kept and used again, as many as there are requests,
and answers are passed on as they come. Usage: proxy_httpx.py ENGINE_URL...
"""

import contextlib
import itertools
import sys

import fastapi
import fastapi.responses
import httpx
import serve

engines = itertools.cycle(sys.argv[1:])


@contextlib.asynccontextmanager
async def client(app: fastapi.FastAPI):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as app.state.client:
        yield


app = fastapi.FastAPI(lifespan=client)


@app.post("/{path:path}")
async def forward(path: str, request: fastapi.Request):
    client: httpx.AsyncClient = request.app.state.client
    body = await request.body()
    outgoing = client.build_request("POST", f"{next(engines)}/{path}", content=body, headers=serve.forwarded(request.headers))
    answer = await client.send(outgoing, stream=True)

    async def chunks():
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        finally:
            await answer.aclose()

    return fastapi.responses.StreamingResponse(chunks(), answer.status_code, serve.forwarded(answer.headers))


serve.run(app)
