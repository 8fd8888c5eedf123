//! The GPUs of this machine as NVML knows them: what there is, and how it is. Without a driver there are none, and the page
//! says why.

use std::ffi::OsStr;
use std::fmt;
use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use prometheus::proto::MetricFamily;
use serde::Serialize;

use super::families::Family;

/// What drivers install, and what is mounted into containers. The name without a version is a developer's.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What slows a device down, of all that NVML calls a reason for its clocks: an idle device is not slow.
const SLOW: [(ThrottleReasons, &str); 6] = [
    (ThrottleReasons::SW_POWER_CAP, "power-cap"),
    (ThrottleReasons::HW_SLOWDOWN, "hardware"),
    (ThrottleReasons::SYNC_BOOST, "sync-boost"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature-limit"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power-brake"),
];

/// The devices of this machine. NVML is opened when they are first asked for, and stays open.
#[derive(Default)]
pub struct Devices(OnceLock<Result<Nvml, String>>);

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_open = self.0.get().map(Result::is_ok);
        f.debug_struct("Devices").field("is_open", &is_open).finish()
    }
}

/// All devices, as `/v1/pressure` and `inspect --devices` show them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DevicesPage {
    /// The driver's version.
    pub driver: Option<String>,
    /// Why there are no devices.
    pub absent: Option<String>,
    /// By index.
    pub list: Vec<DevicePage>,
}

/// A device. What it cannot tell, or not to this process, is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DevicePage {
    /// As NVML counts them.
    pub index: u32,
    /// The same over restarts and for every program.
    pub uuid: Option<String>,
    /// What it is.
    pub name: Option<String>,
    /// Where it is on the bus.
    pub bus: Option<String>,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Of these, held by whatever runs on it.
    pub memory_used_bytes: Option<u64>,
    /// Of its processor, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Percent of the last second or so in which something ran.
    pub busy_percent: Option<u32>,
    /// Errors of its memory that could not be corrected, since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// What slows it down now.
    pub slow: Vec<&'static str>,
    /// Why it cannot be asked.
    pub problem: Option<String>,
}

impl Devices {
    /// What there is, and how it is now.
    pub fn look(&self) -> DevicesPage {
        let nvml = match self.0.get_or_init(open) {
            Ok(nvml) => nvml,
            Err(why) => return DevicesPage { absent: Some(why.clone()), ..DevicesPage::default() },
        };
        let (count, absent) = match nvml.device_count() {
            Ok(count) => (count, (count == 0).then(|| "the driver has no device".to_owned())),
            Err(e) => (0, Some(format!("the driver cannot count its devices: {e}"))),
        };
        let list = (0..count).map(|index| device(nvml, index)).collect();
        DevicesPage { driver: nvml.sys_driver_version().ok(), absent, list }
    }
}

fn open() -> Result<Nvml, String> {
    Nvml::builder().lib_path(OsStr::new(LIBRARY)).init().map_err(|e| match e {
        NvmlError::LibloadingError(_) => {
            format!("no NVIDIA driver here: {LIBRARY} cannot be loaded, so this agent has no GPU")
        }
        NvmlError::DriverNotLoaded => {
            "the NVIDIA driver is installed and not loaded: load its kernel module".to_owned()
        }
        e => format!("NVML cannot be used: {e}"),
    })
}

fn device(nvml: &Nvml, index: u32) -> DevicePage {
    let mut page = DevicePage {
        index,
        uuid: None,
        name: None,
        bus: None,
        memory_bytes: None,
        memory_used_bytes: None,
        temperature_celsius: None,
        busy_percent: None,
        ecc_uncorrected: None,
        slow: vec![],
        problem: None,
    };
    let device = match nvml.device_by_index(index) {
        Ok(device) => device,
        Err(e) => return DevicePage { problem: Some(e.to_string()), ..page },
    };
    let memory = device.memory_info();
    // A device that fell off the bus fails at everything; most cannot tell something or other.
    page.problem = memory.as_ref().err().map(ToString::to_string);
    let memory = memory.ok();
    page.uuid = device.uuid().ok();
    page.name = device.name().ok();
    page.bus = device.pci_info().ok().map(|p| p.bus_id);
    page.memory_bytes = memory.as_ref().map(|m| m.total);
    page.memory_used_bytes = memory.as_ref().map(|m| m.used);
    page.temperature_celsius = device.temperature(TemperatureSensor::Gpu).ok();
    page.busy_percent = device.utilization_rates().ok().map(|u| u.gpu);
    page.ecc_uncorrected = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok();
    let reasons = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
    page.slow = SLOW.iter().filter(|(r, _)| reasons.contains(*r)).map(|(_, name)| *name).collect();
    page
}

impl fmt::Display for DevicesPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(driver) = &self.driver {
            writeln!(f, "driver {driver}")?;
        }
        if let Some(why) = &self.absent {
            writeln!(f, "{why}")?;
        }
        self.list.iter().try_for_each(|device| writeln!(f, "{device}"))
    }
}

impl fmt::Display for DevicePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".into());
        write!(f, "{}: {} {} on {}", self.index, said(&self.name), said(&self.uuid), said(&self.bus))?;
        if let (Some(used), Some(all)) = (self.memory_used_bytes, self.memory_bytes) {
            let size = |bytes| bytesize::ByteSize(bytes).display().iec();
            write!(f, ", {} of {} used", size(used), size(all))?;
        }
        if let Some(degrees) = self.temperature_celsius {
            write!(f, ", {degrees} C")?;
        }
        if let Some(busy) = self.busy_percent {
            write!(f, ", busy {busy}%")?;
        }
        match self.ecc_uncorrected {
            Some(0) => {}
            Some(errors) => write!(f, ", {errors} memory errors that could not be corrected")?,
            None => write!(f, ", no ECC")?,
        }
        if !self.slow.is_empty() {
            write!(f, ", slowed down by {}", self.slow.join(", "))?;
        }
        self.problem.iter().try_for_each(|why| write!(f, ", cannot be asked: {why}"))
    }
}

/// As metrics.
pub(super) fn families(page: &DevicesPage) -> Vec<MetricFamily> {
    let mut info = Family::gauge("sluice_device_info", "A device of this machine; always 1.");
    let mut memory = Family::gauge("sluice_device_memory_bytes", "The memory of a device.");
    let mut used =
        Family::gauge("sluice_device_memory_used_bytes", "Memory held by all that runs on a device.");
    let mut temperature = Family::gauge("sluice_device_temperature_celsius", "The temperature of a device.");
    let mut busy =
        Family::gauge("sluice_device_busy_ratio", "Part of the last second in which something ran.");
    let mut errors = Family::counter(
        "sluice_device_ecc_errors_total",
        "Errors of a device's memory that could not be corrected, since the driver was loaded.",
    );
    let mut slow = Family::gauge("sluice_device_slow", "1 if a device is slowed down by this reason.");
    for d in &page.list {
        let index = d.index.to_string();
        let own = [("device", index.as_str())];
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        info.sample(&[own[0], ("uuid", &text(&d.uuid)), ("name", &text(&d.name))], 1.0);
        let put = |family: &mut Family, value: Option<f64>| {
            if let Some(value) = value {
                family.sample(&own, value);
            }
        };
        put(&mut memory, d.memory_bytes.map(|b| b as f64));
        put(&mut used, d.memory_used_bytes.map(|b| b as f64));
        put(&mut temperature, d.temperature_celsius.map(f64::from));
        put(&mut busy, d.busy_percent.map(|p| f64::from(p) / 100.0));
        put(&mut errors, d.ecc_uncorrected.map(|e| e as f64));
        for (_, reason) in SLOW {
            slow.sample(&[own[0], ("reason", reason)], f64::from(u8::from(d.slow.contains(&reason))));
        }
    }
    [info, memory, used, temperature, busy, errors, slow].into_iter().filter_map(Family::finish).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        let page = Devices::default().look();
        match &page.absent {
            Some(why) => {
                assert!(page.list.is_empty() && families(&page).is_empty() && why.len() > 20, "{why}");
            }
            // Where there are some, each has a name.
            None => assert!(page.list.iter().all(|d| d.name.is_some() || d.problem.is_some()), "{page}"),
        }
    }

    #[test]
    fn what_slows_a_device_down_is_named() {
        let device = DevicePage {
            index: 3,
            uuid: Some("GPU-1".into()),
            name: Some("H200".into()),
            bus: Some("00:1a.0".into()),
            memory_bytes: Some(141 << 30),
            memory_used_bytes: Some(3 << 30),
            temperature_celsius: Some(61),
            busy_percent: Some(97),
            ecc_uncorrected: Some(2),
            slow: vec!["power-cap"],
            problem: None,
        };
        let page = DevicesPage { driver: Some("580.1".into()), absent: None, list: vec![device] };
        assert_eq!(
            page.to_string(),
            "driver 580.1\n3: H200 GPU-1 on 00:1a.0, 3.0 GiB of 141.0 GiB used, 61 C, busy 97%, 2 memory errors that could \
             not be corrected, slowed down by power-cap\n"
        );
        let text = prometheus::TextEncoder::new().encode_to_string(&families(&page)).unwrap();
        for line in [
            "sluice_device_info{device=\"3\",uuid=\"GPU-1\",name=\"H200\"} 1",
            "sluice_device_temperature_celsius{device=\"3\"} 61",
            "sluice_device_ecc_errors_total{device=\"3\"} 2",
            "sluice_device_slow{device=\"3\",reason=\"power-cap\"} 1",
            "sluice_device_slow{device=\"3\",reason=\"hardware\"} 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
