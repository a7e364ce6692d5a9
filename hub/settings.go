package hub

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// DefaultEndpoint is the public hub.
const DefaultEndpoint = "https://huggingface.co"

// Settings say which hub is asked, and where files are kept.
type Settings struct {
	// Endpoint is the hub's base URL, without a slash at its end.
	Endpoint string
	// Cache is the folder with models--ORG--NAME folders.
	Cache string
	// Token is sent to Endpoint, and to nobody else; empty: none is sent.
	Token string
	// Offline: nothing is fetched, only what Cache has counts.
	Offline bool
}

// FromEnvironment reads the variables that huggingface_hub reads, by its rules:
// HF_ENDPOINT; HF_HUB_CACHE, else hub below HF_HOME, else below
// huggingface in XDG_CACHE_HOME or ~/.cache; HF_TOKEN, else the file
// HF_TOKEN_PATH or token in HF_HOME; HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE. The
// error names the variable.
func FromEnvironment() (Settings, error) {
	s := Settings{Endpoint: DefaultEndpoint, Offline: isSet("HF_HUB_OFFLINE") || isSet("TRANSFORMERS_OFFLINE")}
	if endpoint := os.Getenv("HF_ENDPOINT"); endpoint != "" {
		u, err := url.Parse(endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return Settings{}, fmt.Errorf("HF_ENDPOINT: %q is no URL; write one such as %s", endpoint, DefaultEndpoint)
		}
		s.Endpoint = strings.TrimRight(endpoint, "/")
	}
	home := os.Getenv("HF_HOME")
	if home == "" {
		base := os.Getenv("XDG_CACHE_HOME")
		if base == "" {
			user, err := os.UserHomeDir()
			if err != nil {
				return Settings{}, fmt.Errorf("HF_HOME: %w; set it to a folder for downloaded files", err)
			}
			base = filepath.Join(user, ".cache")
		}
		home = filepath.Join(base, "huggingface")
	}
	home = expand(home)
	if s.Cache = expand(os.Getenv("HF_HUB_CACHE")); s.Cache == "" {
		s.Cache = filepath.Join(home, "hub")
	}
	s.Token = strings.TrimSpace(os.Getenv("HF_TOKEN"))
	if s.Token == "" && !isSet("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
		file := expand(os.Getenv("HF_TOKEN_PATH"))
		if file == "" {
			file = filepath.Join(home, "token")
		}
		if text, err := os.ReadFile(file); err == nil { //nolint:gosec // the operator names the file
			s.Token = strings.TrimSpace(string(text))
		}
	}
	return s, nil
}

// isSet reads a switch as huggingface_hub does.
func isSet(variable string) bool {
	switch strings.ToUpper(os.Getenv(variable)) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// expand replaces a leading ~ by the home folder.
func expand(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if user, err := os.UserHomeDir(); err == nil {
			return filepath.Join(user, rest)
		}
	}
	return path
}
