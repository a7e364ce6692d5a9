package extproc

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// recordFate is what became of one access-log record. The values label a
// metric.
type recordFate string

const (
	recordMatched recordFate = "matched"
	// recordUnknown: its decision has ended by other news, or is not ours.
	recordUnknown recordFate = "unknown"
	// recordForeign: no decision of ours is named in it.
	recordForeign recordFate = "foreign"
)

// StreamAccessLogs takes Envoy's records until Envoy ends the stream, which it
// does not by itself: a server that stops must let go of it.
func (s *Server) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	ended := make(chan error, 1)
	go func() { ended <- s.receiveRecords(stream) }() // ends with the stream, at the latest when this function returns
	select {
	case err := <-ended:
		return err
	case <-s.stopping.Done():
		return errStopping
	}
}

func (s *Server) receiveRecords(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			return err
		}
		for _, entry := range msg.GetHttpLogs().GetLogEntry() {
			if fate, final := s.record(entry); final {
				s.metrics.records.WithLabelValues(string(fate)).Inc()
			}
		}
	}
}

// record takes in one record; final is false for those of requests that still
// go on. Requests are told apart by the decision's id alone: x-request-id comes
// from clients and may repeat.
func (s *Server) record(entry *datav3.HTTPAccessLogEntry) (fate recordFate, final bool) {
	common := entry.GetCommonProperties()
	switch common.GetAccessLogType() {
	case datav3.AccessLogType_NotSet, datav3.AccessLogType_DownstreamEnd:
	case datav3.AccessLogType_UpstreamPoolReady:
		s.recordShadow(entry, joinAddress(common.GetUpstreamRemoteAddress()))
		return "", false
	default:
		return "", false
	}
	upstream := joinAddress(common.GetUpstreamRemoteAddress())
	if common.GetResponseFlags().GetUpstreamConnectionFailure() {
		s.suspect(upstream)
	}
	id := decisionID(common.GetMetadata().GetFilterMetadata()[envoy.Metadata])
	if id == "" {
		if s.armEnded(common.GetMetadata().GetFilterMetadata()[envoy.Metadata], entry) {
			return recordForeign, true
		}
		return s.recordShadow(entry, upstream), true
	}
	if t := s.followed.find(id); t != nil {
		t.concluded(entry)
	}
	r := s.picker.Find(id)
	if r == nil {
		return recordUnknown, true
	}
	s.served(r, upstream)
	s.end(r, outcomeOf(entry))
	return recordMatched, true
}

// outcomeOf reads how a request ended from its record.
func outcomeOf(entry *datav3.HTTPAccessLogEntry) scoring.Outcome {
	flags := entry.GetCommonProperties().GetResponseFlags()
	code := entry.GetResponse().GetResponseCode().GetValue()
	switch {
	case flags.GetDownstreamConnectionTermination(), flags.GetDownstreamRemoteReset():
		return scoring.OutcomeCancelled
	case code < http.StatusOK || code >= http.StatusBadRequest,
		flags.GetUpstreamConnectionTermination(), flags.GetUpstreamRemoteReset(), flags.GetUpstreamProtocolError(),
		flags.GetUpstreamRequestTimeout(), flags.GetStreamIdleTimeout(), flags.GetDurationTimeout(),
		flags.GetUpstreamMaxStreamDurationReached():
		// The later ones cut answers that had begun well.
		return scoring.OutcomeError
	}
	return scoring.OutcomeComplete
}

// joinAddress is ip:port as endpoints write it, empty for anything else.
func joinAddress(a *corev3.Address) string {
	socket := a.GetSocketAddress()
	if socket == nil {
		return ""
	}
	return net.JoinHostPort(socket.GetAddress(), strconv.FormatUint(uint64(socket.GetPortValue()), 10))
}
