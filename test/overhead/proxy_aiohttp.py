"""A proxy in Python that takes turns: FastAPI, uvicorn and aiohttp.

Connections to engines are kept and used again, as many as there are requests,
and answers are passed on as they come. Usage: proxy_aiohttp.py ENGINE_URL...
"""

import contextlib
import itertools
import sys

import aiohttp
import fastapi
import fastapi.responses
import serve

engines = itertools.cycle(sys.argv[1:])


@contextlib.asynccontextmanager
async def client(app: fastapi.FastAPI):
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as app.state.client:
        yield


app = fastapi.FastAPI(lifespan=client)


@app.post("/{path:path}")
async def forward(path: str, request: fastapi.Request):
    client: aiohttp.ClientSession = request.app.state.client
    body = await request.body()
    answer = await client.post(f"{next(engines)}/{path}", data=body, headers=serve.forwarded(request.headers))

    async def chunks():
        async with answer:
            async for chunk in answer.content.iter_any():
                yield chunk

    return fastapi.responses.StreamingResponse(chunks(), answer.status, serve.forwarded(answer.headers))


serve.run(app)
