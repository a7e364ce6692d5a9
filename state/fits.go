package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// document is the file.
type document struct {
	// Firsttoken tells our file from another program's.
	Firsttoken string       `json:"firsttoken"`
	Version    int          `json:"version"`
	Saved      time.Time    `json:"saved"`
	Fits       scoring.Fits `json:"fits"`
}

const (
	mark    = "fits"
	version = 1
	// maxFits is more models, and more kinds, than one service routes between;
	// maxName a model's name with room to spare. Together they bound the file
	// below maxFile.
	maxFits = 128
	maxName = 1024
	maxFile = 4 << 20
)

// kept are the fits that the file gets: those that were taught anything.
func kept(fits scoring.Fits) scoring.Fits {
	models := slices.DeleteFunc(slices.Clone(fits.Models), func(m scoring.ModelFit) bool { return m.Groups == 0 || len(m.Model) > maxName })
	kinds := slices.DeleteFunc(slices.Clone(fits.Kinds), func(k scoring.KindFit) bool {
		return k.Groups == 0 || len(k.Model) > maxName || len(k.Kind) > maxName
	})
	return scoring.Fits{Models: models[:min(len(models), maxFits)], Kinds: kinds[:min(len(kinds), maxFits)]}
}

// encode writes the file.
func encode(fits scoring.Fits, now time.Time) ([]byte, error) {
	text, err := json.MarshalIndent(document{mark, version, now.UTC().Truncate(time.Second), fits}, "", "  ")
	return append(text, '\n'), err
}

// decode reads a file. The error says that the whole is not ours or torn; what
// its numbers are worth is for others to say.
func decode(text []byte) (scoring.Fits, error) {
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return scoring.Fits{}, fmt.Errorf("it is no JSON of ours: %w", err)
	}
	switch {
	case d.Firsttoken != mark:
		return scoring.Fits{}, fmt.Errorf(`it has not "firsttoken": %q, so another program wrote it`, mark)
	case d.Version != version:
		return scoring.Fits{}, fmt.Errorf("it has version %d, this program knows version %d", d.Version, version)
	case len(d.Fits.Models) > maxFits || len(d.Fits.Kinds) > maxFits:
		return scoring.Fits{}, fmt.Errorf("it has %d models and %d kinds, more than the %d that are ever written", len(d.Fits.Models), len(d.Fits.Kinds), maxFits)
	}
	return d.Fits, nil
}
