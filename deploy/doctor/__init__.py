"""What is wrong here, why, and what helps: checks of a site and of a coordinator, each against a fault that happens."""

from wardround.deploy.doctor.coordinator import coordinator_doctor
from wardround.deploy.doctor.finding import Finding, show
from wardround.deploy.doctor.site import site_doctor

__all__ = ["Finding", "coordinator_doctor", "show", "site_doctor"]
