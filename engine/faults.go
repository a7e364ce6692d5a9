package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Faults are what is wrong with an engine. The zero value is a healthy one. The
// JSON form is the body of POST /faults.
type Faults struct {
	// Hang: requests are read and never answered, those for /health too.
	Hang bool `json:"hang"`
	// Refuse: the port is closed and every connection reset.
	Refuse bool `json:"refuse"`
	// Unhealthy: /health answers 503.
	Unhealthy bool `json:"unhealthy"`
	// ErrorRate is the share of generation requests, 0 to 1, that are answered
	// with status 500.
	ErrorRate float64 `json:"error_rate"`
	// Slow multiplies the time of every step; 0 and 1 change nothing.
	Slow float64 `json:"slow"`
	// DropAfter cuts the connection of a streamed answer after so many tokens
	// of its first choice; 0: never.
	DropAfter int `json:"drop_after"`
}

func (f Faults) validate() error {
	switch {
	case f.ErrorRate < 0 || f.ErrorRate > 1:
		return fmt.Errorf("error_rate is %g; write 0 to 1", f.ErrorRate)
	case f.Slow < 0 || f.Slow > 1e9:
		return fmt.Errorf("slow is %g; write a factor of 1 to 1e9", f.Slow)
	case f.DropAfter < 0:
		return fmt.Errorf("drop_after is %d; write a number of tokens", f.DropAfter)
	}
	return nil
}

// Faults are the present ones.
func (s *Server) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}

// SetFaults replaces the present faults; the zero value heals. The error names
// what is out of range, or says why the port cannot be opened again.
func (s *Server) SetFaults(f Faults) error {
	if err := f.validate(); err != nil {
		return err
	}
	s.restart.Lock()
	defer s.restart.Unlock()
	s.mu.Lock()
	changed := f.Refuse != s.faults.Refuse
	if f.Hang != s.faults.Hang {
		if f.Hang {
			s.hung = make(chan struct{})
		} else {
			close(s.hung)
		}
	}
	s.faults = f
	s.mu.Unlock()
	s.life.Load().loop.setSlow(f.Slow)
	if changed {
		return s.setOpen(!f.Refuse)
	}
	return nil
}

// serveFaults shows (GET) or replaces (POST) the faults.
func (s *Server) serveFaults(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		var f Faults
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
		d.DisallowUnknownFields()
		err := d.Decode(&f)
		if err == nil {
			err = f.validate()
		}
		if err != nil {
			writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		if f.Refuse != s.Faults().Refuse {
			// The answer has to be out before the connection is cut.
			writeJSON(w, http.StatusOK, f)
			_ = http.NewResponseController(w).Flush()
			if err := s.SetFaults(f); err != nil {
				s.log.Error("faults not set", "error", err)
			}
			return
		}
		if err := s.SetFaults(f); err != nil {
			writeJSON(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
			return
		}
	}
	writeJSON(w, http.StatusOK, s.Faults())
}

// ParseFaults reads the form of the flag: name or name=value, separated by
// commas, with the names of the JSON form.
func ParseFaults(text string) (Faults, error) {
	var f Faults
	if text == "" {
		return f, nil
	}
	fields := make(map[string]json.RawMessage)
	for part := range strings.SplitSeq(text, ",") {
		name, value, given := strings.Cut(strings.TrimSpace(part), "=")
		if !given {
			value = "true"
		}
		fields[name] = json.RawMessage(value)
	}
	raw, err := json.Marshal(fields)
	if err == nil {
		d := json.NewDecoder(strings.NewReader(string(raw)))
		d.DisallowUnknownFields()
		err = d.Decode(&f)
	}
	if err != nil {
		return Faults{}, fmt.Errorf("faults %q: %w; write such as hang,slow=3,error_rate=0.1", text, err)
	}
	return f, errors.Join(f.validate())
}
