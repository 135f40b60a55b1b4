{{- define "handoff.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* `name` is fixed: the alerts and the dashboard expect job="handoff", which the ServiceMonitor takes from it. */}}
{{- define "handoff.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/component: worker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "handoff.labels" -}}
{{ include "handoff.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "handoff.metadata" -}}
name: {{ include "handoff.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "handoff.labels" . | nindent 2 }}
{{- end }}

{{- define "handoff.port" -}}
{{ regexFind "[0-9]+$" .Values.settings.HANDOFF_HTTP_ADDR }}
{{- end }}
