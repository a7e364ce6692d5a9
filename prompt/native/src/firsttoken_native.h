/* The C ABI of the firsttoken_native library. Every function may be called from
 * any thread, and at the same time, except that a handle must not be used during
 * or after its free. No function panics, aborts or keeps a pointer of its caller. */
#ifndef FIRSTTOKEN_NATIVE_H
#define FIRSTTOKEN_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes given to the caller, who gives them back with ft_text_free. On OK, the
 * result; otherwise the error's text. UTF-8. */
typedef struct {
	uint8_t *data;
	size_t len, capacity;
} ft_text;

/* Token ids given to the caller, who gives them back with ft_ids_free. */
typedef struct {
	uint32_t *data;
	size_t len, capacity;
} ft_ids;

enum ft_status {
	FT_OK = 0,
	FT_ERROR = 1,   /* the text says why */
	FT_REFUSED = 2, /* the template called raise_exception; the text is its argument */
};

/* What a segment cache did since the start, in segments and in bytes of their text,
 * and what it holds, in bytes of text, ids and bookkeeping. */
typedef struct {
	uint64_t hits, misses, hit_bytes, miss_bytes, bytes;
} ft_cache_stats;

typedef struct ft_tokenizer ft_tokenizer;
typedef struct ft_template ft_template;

/* engine: 0 fastokens, 1 Hugging Face tokenizers. config is tokenizer_config.json
 * or empty. cache_bytes bounds the cache of text segments between added tokens, 0:
 * none; engine 1 has none. vocab_size is written on FT_OK. */
int32_t ft_tokenizer_load(const uint8_t *json, size_t json_len, const uint8_t *config, size_t config_len,
	int32_t engine, size_t cache_bytes, ft_tokenizer **tokenizer, size_t *vocab_size, ft_text *error);
int32_t ft_tokenizer_encode(const ft_tokenizer *tokenizer, const uint8_t *text, size_t len, bool add_special,
	ft_ids *ids, ft_text *error);
int32_t ft_tokenizer_decode(const ft_tokenizer *tokenizer, const uint32_t *ids, size_t len, ft_text *text);
/* The id, or -1. */
int64_t ft_tokenizer_token_id(const ft_tokenizer *tokenizer, const uint8_t *token, size_t len);
/* False, and stats is not written, where the tokenizer has no segment cache. */
bool ft_tokenizer_cache(const ft_tokenizer *tokenizer, ft_cache_stats *stats);
void ft_tokenizer_free(ft_tokenizer *tokenizer);

/* description is written on FT_OK: the content format, then the names of the
 * template's variables, each after a newline; on FT_ERROR it is the error. */
int32_t ft_template_compile(const uint8_t *source, size_t len, ft_template **template_, ft_text *description);
/* variables is one map in the format of value.rs. The clock is local wall-clock
 * time as seconds since 1970-01-01 00:00:00 local time. */
int32_t ft_template_render(const ft_template *template_, const uint8_t *variables, size_t len,
	int64_t local_seconds, uint32_t nanoseconds, ft_text *text);
void ft_template_free(ft_template *template_);

void ft_text_free(ft_text text);
void ft_ids_free(ft_ids ids);

#endif
