//go:build !cgo || nonative

package native_test

import (
	"errors"
	"testing"

	"github.com/firsttoken/firsttoken/prompt/native"
)

func TestWithoutTheLibrary(t *testing.T) {
	if _, err := native.LoadTokenizer("../../test/tokenizer", native.Options{}); !errors.Is(err, native.ErrNotBuilt) {
		t.Errorf("LoadTokenizer: error %v", err)
	}
	if _, err := native.CompileTemplate("x"); !errors.Is(err, native.ErrNotBuilt) {
		t.Errorf("CompileTemplate: error %v", err)
	}
}
