package hub

import (
	"context"
	"crypto/sha1" //nolint:gosec // git names files by it, the hub gives no other
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// cache is a folder of models in the layout of huggingface_hub:
//
//	models--ORG--NAME/refs/REVISION            the commit that a branch or tag is at
//	models--ORG--NAME/blobs/ETAG               the content of a file
//	models--ORG--NAME/snapshots/COMMIT/FILE    a link to ../../blobs/ETAG
//	.locks/models--ORG--NAME/ETAG.lock         held while a blob is written
type cache struct{ dir string }

// commitName is what a commit is called; a full one needs no refs.
var commitName = regexp.MustCompile(`^[0-9a-f]{40}$`)

// commit is where a revision was when it was last fetched.
func (c cache) commit(m Model) (string, bool) {
	if commitName.MatchString(m.revision()) {
		return m.revision(), true
	}
	text, err := os.ReadFile(filepath.Join(c.dir, m.folder(), "refs", m.revision()))
	commit := strings.TrimSpace(string(text))
	return commit, err == nil && commitName.MatchString(commit)
}

// setCommit notes where a revision is.
func (c cache) setCommit(m Model, commit string) error {
	if commitName.MatchString(m.revision()) {
		return nil
	}
	return writeFile(filepath.Join(c.dir, m.folder(), "refs", m.revision()), commit)
}

// snapshot is the folder of a commit's files.
func (c cache) snapshot(m Model, commit string) string {
	return filepath.Join(c.dir, m.folder(), "snapshots", commit)
}

func (c cache) blob(m Model, etag string) string {
	return filepath.Join(c.dir, m.folder(), "blobs", etag)
}

// link makes a blob appear as a file of a commit.
func (c cache) link(m Model, commit, name, etag string) error {
	file := filepath.Join(c.snapshot(m, commit), filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // others on the machine share the cache
		return err
	}
	target, err := filepath.Rel(filepath.Dir(file), c.blob(m, etag))
	if err != nil {
		return err
	}
	// A link that is replaced must never be missing for those who read.
	fresh := fmt.Sprintf("%s.%d", file, os.Getpid())
	_ = os.Remove(fresh) // of a process that was killed
	if err := os.Symlink(target, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, file); err != nil {
		_ = os.Remove(fresh)
		return err
	}
	return nil
}

// lock keeps other processes from writing the same blob until unlock is called,
// Hugging Face's own among them.
func (c cache) lock(ctx context.Context, m Model, etag string) (unlock func(), err error) {
	file := filepath.Join(c.dir, ".locks", m.folder(), etag+".lock")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // others on the machine share the cache
		return nil, err
	}
	const retry = 200 * time.Millisecond
	l := flock.New(file)
	if ok, err := l.TryLockContext(ctx, retry); !ok {
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return func() { _ = l.Unlock() }, nil
}

// writeFile replaces a file as a whole.
func writeFile(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // others on the machine share the cache
		return err
	}
	fresh, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	_, err = fresh.WriteString(text)
	if err = errors.Join(err, fresh.Chmod(0o644), fresh.Close()); err == nil {
		err = os.Rename(fresh.Name(), file)
	}
	if err != nil {
		_ = os.Remove(fresh.Name())
	}
	return err
}

// errContent says that a blob is not what its name promises.
var errContent = errors.New("the content does not have the checksum that the hub told; it will be fetched anew")

// verify compares a complete file with its etag, which is the SHA-256 of large
// files and git's SHA-1 of small ones. Any other etag proves nothing.
func verify(file, etag string) error {
	in, err := os.Open(file) //nolint:gosec // a name that we made
	if err != nil {
		return err
	}
	defer in.Close()
	var sum hash.Hash
	switch len(etag) {
	case hex.EncodedLen(sha256.Size):
		sum = sha256.New()
	case hex.EncodedLen(sha1.Size):
		info, err := in.Stat()
		if err != nil {
			return err
		}
		sum = sha1.New() //nolint:gosec // see the import
		fmt.Fprintf(sum, "blob %d\x00", info.Size())
	default:
		return nil
	}
	if _, err := io.Copy(sum, in); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != etag {
		return errContent
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}
