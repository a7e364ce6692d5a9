//go:build cgo && !nonative

package native

/*
#if !__has_include(<firsttoken_native.h>)
#error firsttoken: no native library: use make build or make test; for go alone: eval "$(prompt/native/build.sh env)", or -tags nonative
#else
#include <firsttoken_native.h>
#endif
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
// The allocator keeps what a thread freed for that thread; after a load or a free
// that is hundreds of megabytes which nothing will ask for again.
static void ft_trim(void) { malloc_trim(0); }
#else
static void ft_trim(void) {}
#endif
#cgo LDFLAGS: -lfirsttoken_native -lm -ldl -lpthread
#cgo noescape ft_tokenizer_encode
#cgo nocallback ft_tokenizer_encode
#cgo noescape ft_tokenizer_decode
#cgo nocallback ft_tokenizer_decode
#cgo noescape ft_tokenizer_cache
#cgo nocallback ft_tokenizer_cache
#cgo noescape ft_tokenizer_token_id
#cgo nocallback ft_tokenizer_token_id
#cgo noescape ft_template_render
#cgo nocallback ft_template_render
*/
import "C"

import (
	"errors"
	"os"
	"strings"
	"time"
	"unsafe"
)

// built: the library is part of this program.
const built = true

// fastokens can split a long text over up to 32 threads, each of which then keeps
// a cache of up to 64 MB per tokenizer, for as long as the process lives, and what
// it has a regular expression for over rayon's pool, of a thread for each CPU. The
// workers of the tokenizers have the cores already, so we turn that off; both
// variables are read once, at the first long text. They are set here, before main,
// because later another thread might be reading the environment.
func init() {
	for _, variable := range []string{"FASTOKENS_BPE_THREADS", "RAYON_NUM_THREADS"} {
		if _, set := os.LookupEnv(variable); !set {
			_ = os.Setenv(variable, "1") // fails for malformed names only
		}
	}
}

// tokenizerHandle owns a tokenizer of the library. Its calls may run side by
// side; free must be the last one.
type tokenizerHandle struct{ c *C.ft_tokenizer }

// templateHandle owns a template of the library, with the same rules.
type templateHandle struct{ c *C.ft_template }

func loadTokenizer(json, config []byte, engine Engine, cacheBytes int) (h tokenizerHandle, vocab int, err error) {
	number := C.int32_t(0)
	if engine == Tokenizers {
		number = 1
	}
	var size C.size_t
	var message C.ft_text
	status := C.ft_tokenizer_load(bytesPointer(json), C.size_t(len(json)), bytesPointer(config), C.size_t(len(config)),
		number, C.size_t(cacheBytes), &h.c, &size, &message)
	C.ft_trim()
	if status != C.FT_OK {
		return h, 0, failure(status, message)
	}
	return h, int(size), nil
}

func (h tokenizerHandle) encode(text string, addSpecial bool) ([]uint32, error) {
	var ids C.ft_ids
	var message C.ft_text
	status := C.ft_tokenizer_encode(h.c, textPointer(text), C.size_t(len(text)), C.bool(addSpecial), &ids, &message)
	if status != C.FT_OK {
		return nil, failure(status, message)
	}
	defer C.ft_ids_free(ids)
	out := make([]uint32, int(ids.len))
	copy(out, unsafe.Slice((*uint32)(unsafe.Pointer(ids.data)), len(out)))
	return out, nil
}

func (h tokenizerHandle) decode(ids []uint32) (string, error) {
	var text C.ft_text
	status := C.ft_tokenizer_decode(h.c, (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(ids))), C.size_t(len(ids)), &text)
	if status != C.FT_OK {
		return "", failure(status, text)
	}
	return taken(text), nil
}

func (h tokenizerHandle) tokenID(token string) (uint32, bool) {
	id := C.ft_tokenizer_token_id(h.c, textPointer(token), C.size_t(len(token)))
	if id < 0 {
		return 0, false
	}
	return uint32(id), true
}

func (h tokenizerHandle) cacheStats() (s CacheStats, on bool) {
	var c C.ft_cache_stats
	if !C.ft_tokenizer_cache(h.c, &c) {
		return s, false
	}
	return CacheStats{uint64(c.hits), uint64(c.misses), uint64(c.hit_bytes), uint64(c.miss_bytes), uint64(c.bytes)}, true
}

func (h tokenizerHandle) free() {
	C.ft_tokenizer_free(h.c)
	C.ft_trim()
}

func compileTemplate(source string) (h templateHandle, format string, names []string, err error) {
	var description C.ft_text
	status := C.ft_template_compile(textPointer(source), C.size_t(len(source)), &h.c, &description)
	if status != C.FT_OK {
		return h, "", nil, failure(status, description)
	}
	lines := strings.Split(taken(description), "\n")
	return h, lines[0], lines[1:], nil
}

func (h templateHandle) render(variables []byte, now time.Time) (textHandle, error) {
	_, offset := now.Zone()
	var text C.ft_text
	status := C.ft_template_render(h.c, bytesPointer(variables), C.size_t(len(variables)),
		C.int64_t(now.Unix()+int64(offset)), C.uint32_t(now.Nanosecond()), &text)
	if status != C.FT_OK {
		return textHandle{}, failure(status, text)
	}
	return textHandle{text}, nil
}

func (h templateHandle) free() { C.ft_template_free(h.c) }

// textHandle owns a text of the library; the zero value is an empty one.
type textHandle struct{ c C.ft_text }

func (h textHandle) view() string {
	return unsafe.String((*byte)(unsafe.Pointer(h.c.data)), int(h.c.len))
}

func (h textHandle) free() { C.ft_text_free(h.c) }

// failure takes the library's text and makes an error of it.
func failure(status C.int32_t, text C.ft_text) error {
	message := taken(text)
	if status == C.FT_REFUSED {
		return &TemplateError{Message: message}
	}
	return errors.New(message)
}

// taken copies a text of the library and gives its memory back.
func taken(text C.ft_text) string {
	defer C.ft_text_free(text)
	return string(unsafe.Slice((*byte)(unsafe.Pointer(text.data)), int(text.len)))
}

func textPointer(s string) *C.uint8_t { return (*C.uint8_t)(unsafe.Pointer(unsafe.StringData(s))) }

func bytesPointer(b []byte) *C.uint8_t { return (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(b))) }
