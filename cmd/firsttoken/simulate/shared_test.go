package simulate

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/simulator/report"
	"github.com/firsttoken/firsttoken/test/shared"
)

// The promise to whoever switches from the seed's policy: nobody is worse off by
// more than a twentieth, and where engines are nearly saturated the mean falls.
func TestTTFTOnRecordedConversations(t *testing.T) {
	for name, c := range map[string]struct {
		speed, most float64
	}{
		"nearly saturated": {1.216, .95},
		"half idle":        {.6, 1.05},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, notes bytes.Buffer
			o := DefaultOptions()
			o.Traces, o.Endpoints, o.Speed, o.To = []string{shared.File(t, "traces", "conversation_0_2400s.jsonl")}, "4", c.speed, Seconds(25*time.Minute)
			o.Output, o.Out, o.Notes = outputJSON, &out, &notes
			if err := Run(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			var rows []report.Row
			if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
				t.Fatal(err)
			}
			if len(rows) != 3 || notes.Len() > 0 {
				t.Fatalf("%d rows, want three; notes %q", len(rows), notes.String())
			}
			for _, row := range rows[1:] {
				if row.RatioToSeed > c.most || row.LongestTenthRatioToSeed > 1.05 {
					t.Errorf("%s: mean %.3f of the seed's, longest tenth %.3f; want at most %g and 1.05", row.Policy, row.RatioToSeed, row.LongestTenthRatioToSeed, c.most)
				}
				if row.Unserved > 0 || row.Requests != rows[0].Requests {
					t.Errorf("%s: %g requests counted and %g not served, the seed counted %g", row.Policy, row.Requests, row.Unserved, rows[0].Requests)
				}
			}
		})
	}
}
