# The service's image: make image. Its user has no rights, and libzmq is the one
# library that it needs besides libc.

ARG GO=1.26
ARG RUST=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST}-${DEBIAN} AS rust

FROM golang:${GO}-${DEBIAN} AS build
RUN apt-get update \
	&& apt-get install -y --no-install-recommends libzmq3-dev pkg-config \
	&& rm -rf /var/lib/apt/lists/*
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
WORKDIR /src
# What the tokenizer library is made of changes seldom, and takes longest.
COPY prompt/native prompt/native
RUN prompt/native/build.sh
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN eval "$(prompt/native/build.sh env)" \
	&& go build -buildvcs=false -trimpath -ldflags "-s -w -X main.release=${VERSION}" -o /out/firsttoken ./cmd/firsttoken \
	&& test/tools/notices.sh /out/NOTICES

FROM debian:${DEBIAN}-slim
# libzmq's own licence comes with its package, in /usr/share/doc/libzmq5.
RUN apt-get update \
	&& apt-get install -y --no-install-recommends ca-certificates libzmq5 \
	&& rm -rf /var/lib/apt/lists/* \
	&& install -d -o 65532 -g 65532 /var/lib/firsttoken /var/cache/firsttoken
COPY --from=build /out/firsttoken /usr/local/bin/firsttoken
COPY --from=build /out/NOTICES /usr/share/doc/firsttoken/NOTICES
COPY LICENSE /usr/share/doc/firsttoken/LICENSE
ARG VERSION=dev
LABEL org.opencontainers.image.title=firsttoken \
	org.opencontainers.image.version=${VERSION} \
	org.opencontainers.image.licenses=Apache-2.0
ENV HF_HOME=/var/cache/firsttoken
USER 65532:65532
EXPOSE 9002 9090
ENTRYPOINT ["/usr/local/bin/firsttoken"]
CMD ["serve", "--config", "/etc/firsttoken/firsttoken.yml", "--listen", "0.0.0.0:9002", "--admin-listen", "0.0.0.0:9090", "--state-dir", "/var/lib/firsttoken"]
